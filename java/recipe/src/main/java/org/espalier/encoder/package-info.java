/** Fixed models in front of what learns online: they make features of texts, and each version has them. */
package org.espalier.encoder;
