/**
 * safetensors files and checkpoints: read with full validation and mapped into memory, written
 * deterministically and atomically.
 *
 * <p>Source of the format: the <a href="https://github.com/huggingface/safetensors">safetensors</a>
 * specification. A file is an unsigned 64-bit little-endian length N, N bytes of JSON and the
 * tensors' bytes, little-endian and in row-major order.
 */
package org.espalier.format.safetensors;
