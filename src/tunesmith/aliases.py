"""What Hugging Face, LLaMA-Factory and others call a key of ours."""

from __future__ import annotations

ALIASES = {
    "model_name_or_path": "model.name",
    "learning_rate": "update.rate",
    "lr": "update.rate",
    "per_device_train_batch_size": "update.batch",
    "train_batch_size": "update.batch",
    "batch_size": "update.batch",
    "num_train_epochs": "budget.epochs",
    "epochs": "budget.epochs",
    "max_steps": "budget.steps",
    "warmup_ratio": "update.warmup",
    "weight_decay": "update.decay",
    "max_grad_norm": "update.clip",
    "lr_scheduler_type": "update.schedule",
    "output_dir": "out",
    "train_file": "data.train",
    "validation_file": "data.eval",
    "test_file": "data.test",
    "max_length": "data.max_length",
    "max_seq_length": "data.max_length",
    "finetuning_type": "method.kind",
    "lora_r": "method.rank",
    "lora_rank": "method.rank",
    "lora_alpha": "method.alpha",
    "gradient_checkpointing": "recompute",
    "save_steps": "checkpoint.every",
    "save_total_limit": "checkpoint.keep",
    "eval_steps": "evaluate.every",
    "early_stopping_patience": "evaluate.patience",
}
