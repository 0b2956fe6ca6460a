"""Puts questions into a feedback store: `python ask.py FILE STORE`.

FILE is JSON Lines: `{"prompt": "...", "responses": ["...", "..."]}`, with `query_type` where it is not a pair. STORE is a
store's file or its database's URL. What is in the store already is not added again, so the file may grow and be given again.
"""

import json
import sys
from pathlib import Path

from rlhf_gym.feedback import FeedbackStore, Query

file, place = sys.argv[1:]
rows = [json.loads(line) for line in Path(file).read_text(encoding="utf-8").splitlines() if line.strip()]
with FeedbackStore(place) as store:
    store.add_queries([Query(**row, index=index) for index, row in enumerate(rows)])
    print(f"{store.count().queries} questions in the store")
