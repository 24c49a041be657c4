"""Every test runs offline, on one thread, and without the warnings of tiny random models."""

from __future__ import annotations

import gc
import os

os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", HF_DATASETS_OFFLINE="1", TOKENIZERS_PARALLELISM="false")

import torch
import transformers

torch.set_num_threads(1)
transformers.logging.set_verbosity_error()


def pytest_collection_finish(session):
    """Each run collects garbage before it measures memory; what is there for good (modules, thousands of tests) need not be looked through each time."""
    gc.collect()
    gc.freeze()
