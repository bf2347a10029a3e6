/**
 * The hidden channels and heads of ONNX graphs: which there are, which of them go, and the graph without these.
 *
 * <p>{@link org.espalier.compress.onnx.channels.ChannelSearch} finds {@link
 * org.espalier.compress.onnx.channels.HiddenChannels}, {@link org.espalier.compress.onnx.channels.ChannelFit} chooses among
 * them, {@link org.espalier.compress.onnx.channels.ChannelNarrowing} takes them out of a model. How many go of each set is
 * for who calls them, as is running a model. What is known of shapes before a model runs ({@link
 * org.espalier.compress.onnx.channels.ValueShapes}) is found for this, and serves the quantizers too. Nothing here is safe
 * for several threads.
 */
package org.espalier.compress.onnx.channels;
