package org.espalier.recipe;

import java.util.List;
import java.util.Locale;

/** What a key of a recipe takes. */
sealed interface SettingType {
  /** In words, after «takes». */
  String describe();

  /**
   * Text.
   *
   * @param what in words, with its article
   */
  record Text(String what) implements SettingType {
    @Override
    public String describe() {
      return what;
    }
  }

  /** One of a few words. */
  record Choice(List<String> words) implements SettingType {
    @Override
    public String describe() {
      return words.size() == 1
          ? words.get(0)
          : String.join(", ", words.subList(0, words.size() - 1))
              + " or "
              + words.get(words.size() - 1);
    }
  }

  /** Yes or no. */
  record Flag() implements SettingType {
    @Override
    public String describe() {
      return "true or false";
    }
  }

  /** A whole number, both ends included. */
  record Whole(long least, long most) implements SettingType {
    @Override
    public String describe() {
      return "a whole number from " + least + " to " + most;
    }
  }

  /**
   * A number.
   *
   * @param leastIn whether {@code least} itself is allowed
   * @param mostIn whether {@code most} itself is allowed
   */
  record Real(double least, boolean leastIn, double most, boolean mostIn) implements SettingType {
    @Override
    public String describe() {
      return "a number "
          + (leastIn ? "from " : "above ")
          + number(least)
          + (mostIn ? " to " : " to below ")
          + number(most);
    }

    static String number(double value) {
      return value == Math.rint(value) && Math.abs(value) < 1e6
          ? Long.toString((long) value)
          : String.format(Locale.ROOT, "%.0e", value);
    }

    boolean holds(double value) {
      return (leastIn ? value >= least : value > least) && (mostIn ? value <= most : value < most);
    }
  }

  /** A list, or one item in place of a list of one. */
  record ListOf(SettingType item) implements SettingType {
    @Override
    public String describe() {
      return "a list of values, each " + item.describe();
    }
  }

  /** A group of keys. */
  record Group(List<Key> keys) implements SettingType {
    @Override
    public String describe() {
      return "a group of keys (" + String.join(", ", keys.stream().map(Key::name).toList()) + ")";
    }
  }

  /** A list of groups whose keys depend on the word under {@code kind}. */
  record Variants(List<Variant> variants) implements SettingType {
    @Override
    public String describe() {
      return "a list of stages, each with a kind: "
          + String.join(", ", variants.stream().map(Variant::kind).toList());
    }
  }

  /** One kind of group and what it has besides {@code kind}. */
  record Variant(String kind, String description, List<Key> keys) {}

  /**
   * One key.
   *
   * @param fallback what stands where the key is not given, as it would be written; null for nothing
   * @param required whether it must be given
   * @param description one sentence
   */
  record Key(
      String name, SettingType type, String fallback, boolean required, String description) {}
}
