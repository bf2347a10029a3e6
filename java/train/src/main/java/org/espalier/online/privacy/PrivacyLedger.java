package org.espalier.online.privacy;

import java.io.DataInput;
import java.io.DataOutput;
import java.io.IOException;
import java.util.ArrayList;
import java.util.List;
import java.util.Locale;
import java.util.UUID;
import org.espalier.InputException;
import org.espalier.online.memory.SavedState;

/**
 * What private learning has told of its examples: in the pass of one learner, and in those of others that it knows of.
 * Without privacy nothing is written down. Not safe for several threads.
 */
public final class PrivacyLedger {
  private static final int MOST_PASSES = 1 << 20;
  private static final int MOST_DIGESTS = 1 << 10;

  /** Null where nothing is private; so are accountant and pass then. */
  private final Privacy privacy;

  /** What others spent before, and this learner in earlier passes. */
  private final PrivacyAccountant accountant;

  /** The examples of this learner's own. */
  private PrivacyPass pass;

  /** Whether any of them was learned. */
  private boolean began;

  /**
   * @param privacy null where nothing is private
   */
  public PrivacyLedger(Privacy privacy) {
    this.privacy = privacy;
    accountant = privacy == null ? null : new PrivacyAccountant();
    pass = privacy == null ? null : fresh();
  }

  private PrivacyPass fresh() {
    return new PrivacyPass(
        UUID.randomUUID().toString(),
        List.of(),
        0,
        Long.MAX_VALUE,
        privacy.noise(),
        privacy.contributions());
  }

  /** The privacy loss for the example of which most was told; null without privacy. */
  public Double epsilon() {
    if (privacy == null) {
      return null;
    }
    double spent = began ? accountant.spentWith(pass) : accountant.spent();
    return spent == 0 ? 0.0 : Privacy.epsilon(spent, privacy.delta());
  }

  /**
   * Says where the examples of this pass are from. Without a word they are taken for ones that no other pass has.
   *
   * @param stream see {@link PrivacyPass#stream}
   * @param from the number of the pass's first example in it
   * @param to the number after the last that was or is about to be learned
   */
  public void pass(List<String> stream, long from, long to) {
    if (privacy != null) {
      pass = new PrivacyPass(pass.id(), stream, from, to, pass.noise(), pass.contributions());
    }
  }

  /** Examples of this pass were learned. */
  public void learned() {
    began = true;
  }

  /** The examples that come now are from another stream, or from an earlier place of this one. */
  public void beginPass() {
    if (privacy != null) {
      accountant.add(passes());
      pass = fresh();
      began = false;
    }
  }

  /** Takes passes of other learners into account; ones that it knows, and its own, count once. */
  public void account(List<PrivacyPass> others) {
    if (privacy != null) {
      accountant.add(others.stream().filter(other -> !other.id().equals(pass.id())).toList());
    }
  }

  /** The passes that {@link #epsilon} is of; none without privacy. */
  public List<PrivacyPass> passes() {
    if (privacy == null) {
      return List.of();
    }
    List<PrivacyPass> all = new ArrayList<>(accountant.passes());
    if (began) {
      all.add(pass);
    }
    return all;
  }

  /**
   * Looks whether the next step would bring {@link #epsilon} above the limit.
   *
   * @throws PrivacyBudgetException if so
   */
  public void checkBudget() {
    if (privacy == null || privacy.maxEpsilon() == Double.POSITIVE_INFINITY) {
      return;
    }
    double total = Privacy.epsilon(accountant.spentWith(pass), privacy.delta());
    if (total > privacy.maxEpsilon()) {
      throw new PrivacyBudgetException(
          String.format(
              Locale.ROOT,
              "epsilon would be %.4g at delta %.4g, above max-epsilon %.4g: this pass has %.4g, and"
                  + " others have learned in private before",
              total,
              privacy.delta(),
              privacy.maxEpsilon(),
              privacy.epsilon()));
    }
  }

  /** Writes passes. */
  public static void write(DataOutput out, List<PrivacyPass> passes) throws IOException {
    out.writeInt(passes.size());
    for (PrivacyPass pass : passes) {
      SavedState.write(out, pass.id());
      out.writeInt(pass.stream().size());
      for (String digest : pass.stream()) {
        SavedState.write(out, digest);
      }
      out.writeLong(pass.from());
      out.writeLong(pass.to());
      out.writeDouble(pass.noise());
      out.writeInt(pass.contributions());
    }
  }

  /**
   * The passes that {@link #write} wrote.
   *
   * @throws InputException where they are damaged
   */
  public static List<PrivacyPass> read(DataInput in) throws IOException {
    int count = SavedState.count(in, 0, MOST_PASSES);
    List<PrivacyPass> passes = new ArrayList<>();
    for (int i = 0; i < count; i++) {
      String id = SavedState.text(in);
      List<String> stream = new ArrayList<>();
      for (int k = SavedState.count(in, 0, MOST_DIGESTS); k > 0; k--) {
        stream.add(SavedState.text(in));
      }
      try {
        passes.add(
            new PrivacyPass(
                id, stream, in.readLong(), in.readLong(), in.readDouble(), in.readInt()));
      } catch (IllegalArgumentException | NullPointerException e) {
        throw SavedState.damaged("a pass of private learning: " + e.getMessage());
      }
    }
    return passes;
  }
}
