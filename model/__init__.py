"""What generates and learns: tensors and text in, tensors and text out; knows no store."""
