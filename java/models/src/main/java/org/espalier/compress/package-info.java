/**
 * Compression of whole checkpoints as a stream: the input is mapped, the output is written tensor
 * by tensor from a bounded buffer, and nothing takes its name before it is complete.
 */
package org.espalier.compress;
