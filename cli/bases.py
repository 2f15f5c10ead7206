"""Base models: add-base, bases."""

from __future__ import annotations

import click

from .output import number, print_json, print_table, say, size
from .session import Session, Verb, format_option


@click.command(cls=Verb)
@click.argument("name")
@click.option("--model", required=True, metavar="TIMM_NAME", help="Architecture name in timm.")
@click.option(
    "--weights", metavar="FILE", help="File of weights: .safetensors, or .pth (read once, without running its code)."
)
@click.option("--pretrained", is_flag=True, help="timm's pretrained weights, from the hub or its cache.")
@click.option("--random-init", is_flag=True, help="Random initial weights, seeded by --seed.")
@click.option(
    "--model-arg", "model_args", multiple=True, metavar="K=V", help="Extra argument for timm.create_model; repeatable."
)
@click.option(
    "--input-size",
    type=click.IntRange(min=1),
    metavar="PX",
    help="Height and width of the images. Default: the model's own.",
)
@click.option("--plugin", metavar="NAME", help="Architecture plugin, if more than one matches.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed for --random-init.")
@format_option
@click.pass_obj
def add_base(
    session: Session,
    name: str,
    model: str,
    weights: str | None,
    pretrained: bool,
    random_init: bool,
    model_args: tuple[str, ...],
    input_size: int | None,
    plugin: str | None,
    seed: int,
    form: str,
) -> None:
    """Add a backbone to the registry.

    \b
    Examples:
      taps-registry add-base r50 --model resnet50 --pretrained
      taps-registry add-base mine --model vit_small_patch16_224 --weights mine.safetensors --model-arg num_classes=10
    """
    with session.open() as registry:
        from ..registry.models.build import parse_arguments

        base = registry.add_base(
            name,
            model,
            weights=weights,
            pretrained=pretrained,
            random_init=random_init,
            arguments=parse_arguments(model_args),
            input_size=input_size,
            plugin=plugin,
            seed=seed,
        )
    if form == "json":
        return print_json(base)
    gated = sum(layer.kind != "norm" for layer in base.layers)
    say(f"Added {name}: {base.model}, {number(base.params)} parameters, {gated} gated layers, {size(base.bytes)}.")
    return say(f"Next: taps-registry add-task TASK --base {name} --data DIR")


@click.command(cls=Verb)
@format_option
@click.pass_obj
def bases(session: Session, form: str) -> None:
    """List the base models.

    \b
    Example:
      taps-registry bases --format json
    """
    with session.open() as registry:
        listed = registry.bases()
    if form == "json":
        return print_json({"bases": listed})
    return print_table(
        ("base", "model", "plugin", "input>", "layers>", "parameters>", "size>", "digest"),
        (
            (
                base.name,
                base.model,
                base.plugin,
                f"{base.input.size[1]}x{base.input.size[2]}",
                sum(layer.kind != "norm" for layer in base.layers),
                number(base.params),
                size(base.bytes),
                base.digest[:12],
            )
            for base in listed
        ),
    )


@click.command(cls=Verb)
@click.argument("base")
@click.pass_obj
def remove_base(session: Session, base: str) -> None:
    """Remove a base model that no task is on. `gc` frees its bytes.

    \b
    Example:
      taps-registry remove-base r50
    """
    with session.open() as registry:
        registry.remove_base(base)
    say(f"Removed {base}. `taps-registry gc` frees its bytes.")
