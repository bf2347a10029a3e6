package org.espalier.online;

import java.util.Map;
import java.util.Set;
import java.util.TreeMap;
import java.util.TreeSet;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/** Chooses the tables of a model that are learned by rows. */
public final class RowTables {
  private static final Logger LOG = LoggerFactory.getLogger(OnlineLearner.class);

  /** Where nobody asks for it, a smaller table is learned as a whole, which takes less time than to sort rows. */
  private static final long LEAST_BYTES = 1 << 16;

  /** From here on steps on a whole table take milliseconds each, of which a host is told. */
  private static final long SLOW_BYTES = 1 << 24;

  private RowTables() {}

  /**
   * Has a model learn by rows what the settings let it, and all else as a whole.
   *
   * @return the names of these tables; none where it looks up no rows
   */
  public static Set<String> begin(Learnable model, OnlineSettings settings) {
    if (!(model instanceof RowLookUps lookUps)) {
      return Set.of();
    }
    Set<String> chosen = new TreeSet<>();
    tables(model, settings)
        .forEach(
            (name, reader) -> {
              if (reader.isEmpty()) {
                chosen.add(name);
              }
            });
    lookUps.learnByRows(chosen);
    return chosen;
  }

  /**
   * Tells of tables that would be learned by rows, were they not read in another way too, and of large ones that are not
   * unless the settings ask for it.
   *
   * @param chosen the tables that are learned by rows
   * @throws IllegalArgumentException where the settings ask for tables by rows and there are none
   */
  static void tell(Learnable model, OnlineSettings settings, Set<String> chosen) {
    Map<String, String> tables = tables(model, settings);
    tables.keySet().removeAll(chosen);
    if (settings.sparseRows() == OnlineSettings.SparseRows.ALWAYS && chosen.isEmpty()) {
      throw new IllegalArgumentException(
          "sparse-rows: always, but "
              + (tables.isEmpty()
                  ? "it looks no rows up in tables"
                  : "all tables that it looks rows up in are read in another way too: " + tables));
    }
    tables.forEach(
        (name, reader) ->
            LOG.warn(
                "Each step goes through the whole table {}: not only its rows are read, but all of"
                    + " it by {}",
                name,
                reader));
    if (settings.couldLearnByRows() && model instanceof RowLookUps lookUps) {
      Map<String, String> readers = lookUps.tables();
      for (Weight w : model.weights()) {
        if (w.latent().bytes() >= SLOW_BYTES && "".equals(readers.get(w.name()))) {
          LOG.warn(
              "Each step goes through all {} MB of the table {}: momentum, AdamW and weight decay"
                  + " move every row; with sparse-rows: always they move those that a batch reads",
              w.latent().bytes() / 1_000_000,
              w.name());
        }
      }
    }
  }

  /** The tables that the settings would learn by rows, and who reads each in another way; empty where nobody does. */
  private static Map<String, String> tables(Learnable model, OnlineSettings settings) {
    Map<String, String> tables = new TreeMap<>();
    if (model instanceof RowLookUps lookUps && settings.learnsByRows()) {
      tables.putAll(lookUps.tables());
      if (settings.sparseRows() == OnlineSettings.SparseRows.AUTO) {
        for (Weight w : model.weights()) {
          if (w.latent().bytes() < LEAST_BYTES) {
            tables.remove(w.name());
          }
        }
      }
    }
    return tables;
  }
}
