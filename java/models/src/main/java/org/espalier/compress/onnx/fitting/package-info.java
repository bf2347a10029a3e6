/**
 * What calibration keeps of activations, and what is solved for with it: which weights stay and what they become, integers that
 * make good what others lose, channels that the others tell of, scales that suit both sides of a product. Numbers alone:
 * nothing here knows of graphs, of files or of who runs a model.
 *
 * <p>{@link org.espalier.compress.onnx.fitting.ActivationStatistics} is what all of it begins with; its second moments H go to
 * the others as a lower triangle, of whole channels or of blocks of them. Everything is computed in a fixed order, so that
 * equal examples give equal bits on any number of threads.
 */
package org.espalier.compress.onnx.fitting;
