"""The commands of ``aoefs``, each a module with ``add_arguments(parser)`` and ``run(arguments) -> int``."""
