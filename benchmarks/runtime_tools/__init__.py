"""The portable files in runtimes that nobody here wrote: exchange of arrays, one file a runtime, scores, tables.

What runs in a runtime's own environment (exchange.py, openvino_tool.py, web_tool.mjs) imports neither fxopt nor torch.
"""
