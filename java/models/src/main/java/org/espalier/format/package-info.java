/** What the model formats share: files that appear whole or not at all. */
package org.espalier.format;
