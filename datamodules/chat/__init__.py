"""How rows become chats: the form of requests and answers, chat templates, tokens in their segments."""
