/**
 * What learners and models do with memory alike: look at tensors as floats, close what they have opened, and read and
 * write the pieces of a saved state, which may hold anything when it is read. Knows of neither learners nor models.
 */
package org.espalier.online.memory;
