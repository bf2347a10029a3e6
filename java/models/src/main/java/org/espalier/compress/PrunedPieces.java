package org.espalier.compress;

import java.nio.ByteBuffer;
import org.espalier.op.MagnitudePrune;

/** Where the pruned tensors of a checkpoint come from, piece by piece. */
interface PrunedPieces extends AutoCloseable {
  /** The magnitude that separates what is kept, as {@link MagnitudePrune.Result} has it. */
  float threshold();

  /** Elements of the pieces of a tensor, a multiple of 8; the last has what remains. */
  long step(int index);

  /**
   * Makes a piece of a tensor; those of one tensor come in their order.
   *
   * @param index the tensor's place among the chosen ones
   * @return how many of its weights are pruned
   */
  long make(int index, long from, long count);

  /** The weights of the piece, until the next is made. */
  ByteBuffer weights();

  /** What is kept of the piece, where masks are wanted, until the next is made. */
  ByteBuffer bits();

  @Override
  void close();
}
