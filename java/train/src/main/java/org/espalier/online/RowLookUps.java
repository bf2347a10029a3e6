package org.espalier.online;

import java.util.Map;
import java.util.Set;

/**
 * What a {@link Learnable} is too of which a batch reads some rows of tables. Such a table can be learned by rows: backward
 * leaves the gradient of the rows that were read, and a step and what it is published by touch these alone, whatever the
 * table's size.
 */
public interface RowLookUps {
  /**
   * The names of the weights that rows are looked up in, and who reads each in another way: empty where nobody does, so
   * that it can be learned by rows.
   */
  Map<String, String> tables();

  /** Has these tables be learned by rows from now on, and all other weights as a whole. */
  void learnByRows(Set<String> names);

  /** The gradient that the last backward has left at a table that is learned by rows. */
  RowGradient rowGradient(String table);

  /** Says that a step has changed rows of a table that is learned by rows, which are its owner's then. */
  void changed(String table, long[] rows);

  /** Says that any row of any table may have changed. */
  void changedAll();
}
