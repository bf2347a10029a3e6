/**
 * Compression of whole checkpoints as a stream: the input is mapped, the output is written tensor
 * by tensor from a bounded buffer, and nothing takes its name before it is complete. ONNX models are compressed in
 * {@code compress.onnx}, which has the files of masks and the progress of long runs from here.
 */
package org.espalier.compress;
