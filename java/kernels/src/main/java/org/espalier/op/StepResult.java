package org.espalier.op;

/**
 * What a step of an optimizer found.
 *
 * @param norm of mask · gate · gradient over the list; NaN where neither clipping nor skipping
 *     asked for it
 * @param clipFactor 1 where nothing was clipped
 * @param skipped whether non-finite gradients left everything as it was
 * @param nonFinite NaN and infinite gradient entries; 0 where neither clipping nor skipping asked
 * @param nonFiniteChannels channels whose new scale is NaN, because one of their weights is NaN or
 *     infinite after the step
 */
public record StepResult(
    double norm, double clipFactor, boolean skipped, long nonFinite, long nonFiniteChannels) {}
