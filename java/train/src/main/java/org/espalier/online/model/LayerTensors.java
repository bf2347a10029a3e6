package org.espalier.online.model;

import org.espalier.device.Tensor;

/**
 * What a dense layer computes with, or the gradients of it.
 *
 * @param factors null where the layer has none
 * @param bias null where it has none
 */
record LayerTensors(Tensor factors, Tensor weight, Tensor bias) {}
