/** The native library and what of the machine it runs on: instruction set, threads, bandwidth of the memory. */
package org.espalier.backend;
