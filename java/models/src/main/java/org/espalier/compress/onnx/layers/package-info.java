/**
 * The layers of ONNX graphs that compute alike, one behind the other: which there are, and the graph without some of them.
 *
 * <p>{@link org.espalier.compress.onnx.layers.LayerSearch} finds {@link org.espalier.compress.onnx.layers.RepeatedLayer}s,
 * {@link org.espalier.compress.onnx.layers.LayerRemoval} takes them out of a model. Which go is for who calls them, as is
 * running a model. Nothing here is safe for several threads.
 */
package org.espalier.compress.onnx.layers;
