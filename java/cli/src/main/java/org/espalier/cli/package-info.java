/**
 * The command line: one class a sub-command. Results and JSON go to standard output; everything
 * else (progress, logs, errors) to standard error.
 */
package org.espalier.cli;
