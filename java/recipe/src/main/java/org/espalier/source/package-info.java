/** Models and other files as users name them: paths, and {@code maven:…} for files inside artefacts that the user's own Maven resolves. */
package org.espalier.source;
