/**
 * Compression of whole checkpoints as a stream: the input is mapped, the output is written tensor
 * by tensor from a bounded buffer, and nothing takes its name before it is complete. Magnitude pruning of ONNX models
 * is here too, for it has the same rules and masks.
 */
package org.espalier.compress;
