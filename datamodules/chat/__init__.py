"""Rows as chats: the form of requests and answers, chat templates, tokenizers, tokens by segment."""
