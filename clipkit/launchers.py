"""Errors for unsupported launches: some settings of `accelerate launch`, and processes that share a GPU."""

from collections.abc import Mapping, Sequence

from clipkit.errors import UserError

# Variables that `accelerate launch` sets from its options or its configuration file: name, values without an effect,
# the feature that other values request, and what to use instead.
_UNSUPPORTED = (
    ("ACCELERATE_USE_DEEPSPEED", ("false",), "DeepSpeed", "train.gradient_checkpointing or a smaller micro-batch"),
    ("ACCELERATE_USE_MEGATRON_LM", ("false",), "Megatron-LM", "train.gradient_checkpointing or a smaller micro-batch"),
    ("ACCELERATE_USE_FSDP", ("false",), "FSDP", "train.shard: true in the recipe"),
    ("ACCELERATE_USE_PARALLELISM_CONFIG", ("false",), "a parallelism config", "one process per GPU"),
    ("ACCELERATE_DYNAMO_BACKEND", ("no",), "torch.compile through Accelerate", "train.compile in the recipe"),
    ("ACCELERATE_MIXED_PRECISION", ("no", "fp16", "bf16"), "fp8", "train.precision"),
    ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", ("1",), "gradient accumulation", "train.micro_batch_size"),
)


def refuse_unsupported_launcher(environment: Mapping[str, str]) -> None:
    """Raise an error if `accelerate launch` requests a feature that clipkit does not support.

    The launcher passes its settings in environment variables.

    Raises:
        UserError: an unsupported feature is requested. The message names the variable and an alternative.

    Example:
        >>> refuse_unsupported_launcher({"ACCELERATE_USE_DEEPSPEED": "false"})
    """
    for variable, unused, feature, instead in _UNSUPPORTED:
        value = environment.get(variable, unused[0])
        if value.lower() not in unused:
            raise UserError(
                f"accelerate launch requests {feature} ({variable}={value}), which clipkit does not support; "
                f"remove this setting from the Accelerate config, and use {instead}"
            )


def refuse_shared_gpus(used: Sequence[tuple[str, str]]) -> None:
    """Raise an error if two processes use the same GPU, because training would be slow or wait forever.

    Args:
        used: names of the machine and the GPU for each rank; the name of the GPU is "" on a CPU.

    Raises:
        UserError: two processes use the same GPU. The message names their ranks.

    Example:
        >>> refuse_shared_gpus([("node1", "GPU 0"), ("node1", "GPU 1"), ("node2", "GPU 0")])
    """
    ranks: dict[tuple[str, str], list[int]] = {}
    for rank, gpu in enumerate(used):
        if gpu[1]:
            ranks.setdefault(gpu, []).append(rank)
    for (machine, _), sharing in ranks.items():
        if len(sharing) > 1:
            gpus = sum(other == machine for other, _ in ranks)
            raise UserError(
                f"ranks {', '.join(map(str, sharing))} use the same GPU of {machine}; "
                f"start one process per GPU: --processes {gpus}"
            )
