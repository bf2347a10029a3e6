/**
 * Checkpoints of the kind that Hugging Face's Transformers reads, a {@code config.json} beside safetensors, as ONNX graphs:
 * what the configuration says is computed with the tensors, whose data stays in the checkpoint's files.
 */
package org.espalier.transformers;
