package org.espalier;

import java.lang.annotation.ElementType;
import java.lang.annotation.Retention;
import java.lang.annotation.RetentionPolicy;
import java.lang.annotation.Target;
import org.junit.jupiter.api.condition.DisabledIf;

/** Of tests that are skipped where {@link ExactProducts} are not here. */
@Target(ElementType.METHOD)
@Retention(RetentionPolicy.RUNTIME)
@DisabledIf(value = "org.espalier.ExactProducts#areMissing", disabledReason = ExactProducts.REASON)
public @interface NeedsExactProducts {}
