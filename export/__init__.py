"""From a program to an ONNX file, and the proof that the file is right."""
