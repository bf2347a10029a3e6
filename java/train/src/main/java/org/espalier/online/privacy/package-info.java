/**
 * Differentially private learning and its account: {@link org.espalier.online.privacy.Privacy} says how much noise there is and
 * what epsilon a pass has by it, {@link org.espalier.online.privacy.PrivacyLedger} what was told of the examples in all passes
 * that a learner knows of. Nothing here sees an example, a gradient or the noise's key: the learner clips and adds noise.
 */
package org.espalier.online.privacy;
