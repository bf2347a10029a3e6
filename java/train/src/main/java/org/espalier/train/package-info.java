/**
 * Training of compressed models: a {@link org.espalier.train.CompressionPlan} says what is done, a
 * {@link org.espalier.train.Compression} does it stage by stage, and a {@link
 * org.espalier.train.TrainingListener} watches. Weights are pruned and quantized while they train,
 * the original model is the teacher, and what is exported is exactly what training saw.
 */
package org.espalier.train;
