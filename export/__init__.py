"""torch -> files that travel: ONNX, its checks and costs, the bundle. `bundle` and `verify` need no torch."""
