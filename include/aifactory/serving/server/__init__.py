"""The fallback model server: the Open Inference Protocol v2 over ONNX runtime, where Triton's wheel cannot run.

`oip` reads requests and writes answers, `loaded` has the models, `answering` scores in a bounded pool of threads,
`rest` and `rpc` are the two ways in, `__main__` is the program.
"""
