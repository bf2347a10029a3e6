package org.espalier.recipe;

import java.nio.file.Path;

/**
 * What an example is made of, as a report shows it.
 *
 * @param text null for an image
 * @param image null for a text
 */
record ExampleSource(String text, Path image) {}
