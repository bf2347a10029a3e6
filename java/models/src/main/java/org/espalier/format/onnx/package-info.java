/**
 * ONNX models: read with full validation, changed, and written whole. The messages are the protobuf
 * classes of {@code ai.onnx.proto.OnnxMl}; what a message may not say is checked here.
 */
package org.espalier.format.onnx;
