"""Every test runs offline, on one thread, and without the warnings of tiny random models."""

from __future__ import annotations

import gc
import os
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", HF_DATASETS_OFFLINE="1", TOKENIZERS_PARALLELISM="false")

import pytest
import torch
import transformers

import shop

torch.set_num_threads(1)
transformers.logging.set_verbosity_error()


def pytest_collection_finish(session):
    """Each run collects garbage before it measures memory; what is there for good (modules, thousands of tests) need not be looked through each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> Path:
    """A folder with a tiny encoder, `model`, for rows and runs of one file of tests."""
    work = tmp_path_factory.mktemp("encoder")
    shop.encoder(work / "model")
    return work


@pytest.fixture(scope="module")
def decoder(tmp_path_factory) -> Path:
    """A folder with a tiny decoder, `model`, for rows and runs of one file of tests."""
    work = tmp_path_factory.mktemp("decoder")
    shop.decoder(work / "model")
    return work


@pytest.fixture(scope="module")
def seq2seq(tmp_path_factory) -> Path:
    """A folder with a tiny encoder-decoder, `model`, for rows and runs of one file of tests."""
    work = tmp_path_factory.mktemp("seq2seq")
    shop.seq2seq(work / "model")
    return work
