/**
 * Models that learn: {@link org.espalier.online.model.LinearHead} and {@link org.espalier.online.model.Perceptron}, which need
 * neither autograd nor libtorch, and {@link org.espalier.online.model.TorchLearnable}, any that libtorch runs. Each is a
 * {@link org.espalier.online.Learnable}, which is all that a learner knows of it, owned by one thread at a time; its
 * predictors answer in any.
 */
package org.espalier.online.model;
