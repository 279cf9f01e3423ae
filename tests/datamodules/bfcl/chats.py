"""What the BFCL prompt test runs for each version: every chat must be the one that the official functions make."""

import copy
import importlib
import os
import sys
import tempfile
from unittest.mock import MagicMock

from datamodules.bfcl.package import find_package
from datamodules.bfcl.rows import CATEGORIES, chat, read_category

package = find_package(sys.argv[1])
os.environ["BFCL_PROJECT_ROOT"] = tempfile.mkdtemp()  # the package makes folders there when it is imported
sys.path.insert(0, str(package.folder.parent))
sys.modules |= {"bfcl_eval.constants.model_config": MagicMock(), "tenacity": MagicMock()}
handler, utils = (importlib.import_module(f"bfcl_eval.{name}") for name in ("model_handler.utils", "utils"))


def official_chat(row):
    question, functions = copy.deepcopy(row.question), copy.deepcopy(row.functions)
    if package.version == 3:
        functions = handler.func_doc_language_specific_pre_processing(functions, row.id.rsplit("_", 1)[0])
    else:
        functions = utils._func_doc_language_specific_pre_processing(functions, row.category)
    return handler.system_prompt_pre_processing_chat_model(question, functions, row.id)


rows = [row for category in CATEGORIES[package.version] for row in read_category(package, category)]
different = [row.id for row in rows if chat(package, row) != official_chat(row)]
print(len(rows), different)
