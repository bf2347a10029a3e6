/**
 * Models in ONNX Runtime: what their activations are on examples, how near a candidate is to its reference, how right
 * both are and how fast; and the tokens that texts become for them.
 */
package org.espalier.evaluate;
