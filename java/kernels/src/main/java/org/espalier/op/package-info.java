/**
 * The operations, over memory that the host owns: each is one native call, with the same bits on every instruction set
 * and for every number of threads. What is called in a loop holds its native list until it is closed.
 */
package org.espalier.op;
