"""The commands of ``aoefs``: one module each, with ``add_arguments(parser)`` and ``run(arguments) -> int``."""
