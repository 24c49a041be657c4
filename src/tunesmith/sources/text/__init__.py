"""From files to examples: strict readers (`read`) and the formats that users bring (`formats`). Imports neither torch nor transformers."""
