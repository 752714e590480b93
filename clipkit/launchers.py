"""Settings of `accelerate launch` that clipkit does not support: errors, because ignoring them would change a run."""

from collections.abc import Mapping

from clipkit.errors import UserError

# Variables that `accelerate launch` sets from its options or its configuration file: name, values without an effect,
# the feature that other values request, and what to use instead.
_UNSUPPORTED = (
    ("ACCELERATE_USE_DEEPSPEED", ("false",), "DeepSpeed", "train.gradient_checkpointing or a smaller micro-batch"),
    ("ACCELERATE_USE_MEGATRON_LM", ("false",), "Megatron-LM", "train.gradient_checkpointing or a smaller micro-batch"),
    ("ACCELERATE_USE_FSDP", ("false",), "FSDP", "train.gradient_checkpointing or a smaller micro-batch"),
    ("ACCELERATE_USE_PARALLELISM_CONFIG", ("false",), "a parallelism config", "one process per GPU"),
    ("ACCELERATE_DYNAMO_BACKEND", ("no",), "torch.compile through Accelerate", "train.compile in the recipe"),
    ("ACCELERATE_MIXED_PRECISION", ("no", "fp16", "bf16"), "fp8", "train.precision"),
    ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", ("1",), "gradient accumulation", "train.micro_batch_size"),
)


def refuse_unsupported_launcher(environment: Mapping[str, str]) -> None:
    """Raise an error if `accelerate launch` requests a feature that clipkit does not support.

    Args:
        environment: variables of this process.

    Raises:
        UserError: names the setting, its variable and what to use instead.

    Example:
        >>> refuse_unsupported_launcher({"ACCELERATE_USE_DEEPSPEED": "false"})
    """
    for variable, unused, feature, instead in _UNSUPPORTED:
        value = environment.get(variable, unused[0])
        if value.lower() not in unused:
            raise UserError(
                f"accelerate launch requests {feature} ({variable}={value}), which clipkit does not support; remove it "
                f"from the Accelerate config, and use {instead}"
            )
