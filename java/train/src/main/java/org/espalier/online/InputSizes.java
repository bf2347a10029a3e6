package org.espalier.online;

import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import org.espalier.InputException;
import org.espalier.format.NearNames;

/**
 * How many values an example has for each input of a model, as a recipe says it: for inputs by name, or for the only one
 * whatever its name.
 */
public final class InputSizes {
  /** Under which the size of the only input is, whatever its name. */
  private static final String ONLY = "";

  private final Map<String, Integer> sizes;
  private final String place;
  private final Map<String, String> places;

  private InputSizes(Map<String, Integer> sizes, String place, Map<String, String> places) {
    this.sizes = sizes;
    this.place = place;
    this.places = places;
  }

  /**
   * For the only input of a model.
   *
   * @param place where the recipe says it
   */
  static InputSizes ofOnly(int size, String place) {
    return new InputSizes(Map.of(ONLY, size), place, Map.of());
  }

  /**
   * For inputs by name.
   *
   * @param place where the recipe says it
   * @param places where it says each
   */
  static InputSizes ofNamed(Map<String, Integer> sizes, String place, Map<String, String> places) {
    return new InputSizes(sizes, place, places);
  }

  /** Whether it names the inputs. */
  boolean isNamed() {
    return !places.isEmpty();
  }

  /** How many features an example has: the values of all inputs. */
  long features() {
    return sizes.values().stream().mapToLong(size -> size).sum();
  }

  /**
   * The sizes of a model's inputs.
   *
   * @param names of the model's inputs
   * @param model what messages call it
   * @return in the order of the names
   * @throws InputException that names line and key, where these are not the model's inputs
   */
  public int[] of(List<String> names, Path model) {
    if (!isNamed()) {
      if (names.size() != 1) {
        throw new InputException(
            place
                + " is for a model with one input; "
                + model
                + " has "
                + names.size()
                + "; "
                + keys(names)
                + " is right");
      }
      return new int[] {sizes.get(ONLY)};
    }
    for (String name : sizes.keySet()) {
      if (!names.contains(name)) {
        throw new InputException(
            places.get(name)
                + " is no input of "
                + model
                + "; its inputs are "
                + NearNames.list(name, names));
      }
    }
    if (sizes.size() < names.size()) {
      throw new InputException(
          place + " is without some inputs of " + model + "; " + keys(names) + " is right");
    }
    return names.stream().mapToInt(sizes::get).toArray();
  }

  /** What a recipe says of a model with such inputs. */
  public static String keys(List<String> names) {
    List<String> sizes = new ArrayList<>();
    names.forEach(name -> sizes.add(name + ": …"));
    return names.size() == 1 ? "features: …" : "inputs: {" + String.join(", ", sizes) + "}";
  }
}
