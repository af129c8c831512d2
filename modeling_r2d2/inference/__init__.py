"""Trained models at work: loading, encoding, exact ranking, calibrated match probabilities, the ONNX runtime."""
