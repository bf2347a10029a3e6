package org.espalier.recipe;

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.node.LongNode;
import com.fasterxml.jackson.databind.node.TextNode;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.nio.file.FileVisitOption;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Locale;
import java.util.Set;
import java.util.stream.Stream;
import org.espalier.InputException;
import org.espalier.evaluate.ExampleLine;

/**
 * A folder of images: with a folder for each class, or, without labels, of images alone. Names that begin with a point and
 * files of other kinds are left out.
 *
 * @param examples sorted by their paths, which are relative to the folder
 * @param classes the names of the folders in their order; empty where they are numbers, which are the classes, or there are
 *     none
 */
record ImageFolder(List<ExampleLine> examples, List<String> classes) {
  private static final List<String> READ =
      List.of("jpg", "jpeg", "png", "gif", "bmp", "tif", "tiff");

  /** To leave these out would be to measure on fewer images than there are. */
  private static final Set<String> NOT_READ = Set.of("webp", "avif", "heic", "heif", "jxl", "jp2");

  /**
   * Reads a folder.
   *
   * @param classes that the user named, which may be numbers that mean others
   */
  static ImageFolder read(Path folder, List<String> classes) {
    List<Path> below = list(folder, 1);
    List<Path> folders = below.stream().filter(Files::isDirectory).toList();
    List<ExampleLine> examples = new ArrayList<>();
    for (Path image : images(below)) {
      examples.add(ExampleLine.ofImage(folder.relativize(image).toString(), null));
    }
    if (!folders.isEmpty() && !examples.isEmpty()) {
      throw new InputException(
          folder
              + " has images beside folders, which are classes: "
              + examples.get(0).image()
              + " beside "
              + folders.get(0).getFileName());
    }
    List<String> names = names(folders, classes);
    boolean numbers = names.isEmpty();
    for (Path own : folders) {
      String name = own.getFileName().toString();
      JsonNode label = numbers ? LongNode.valueOf(Long.parseLong(name)) : TextNode.valueOf(name);
      for (Path image : images(list(own, Integer.MAX_VALUE))) {
        examples.add(ExampleLine.ofImage(folder.relativize(image).toString(), label));
      }
    }
    if (examples.isEmpty()) {
      throw new InputException(
          folder + " holds no image, in a folder for each class or without any: " + READ);
    }
    return new ImageFolder(examples, names);
  }

  /** The names of the classes alone, as {@link #read} finds them. */
  static List<String> classes(Path folder, List<String> classes) {
    return names(list(folder, 1).stream().filter(Files::isDirectory).toList(), classes);
  }

  /** The names of folders; none where they are numbers, and not what the classes are called. */
  private static List<String> names(List<Path> folders, List<String> classes) {
    List<String> names = folders.stream().map(f -> f.getFileName().toString()).toList();
    boolean numbers =
        !classes.containsAll(names) && names.stream().allMatch(name -> name.matches("\\d{1,9}"));
    return numbers ? List.of() : names;
  }

  /** What is in a folder, sorted. */
  private static List<Path> list(Path folder, int depth) {
    try (Stream<Path> files = Files.walk(folder, depth, FileVisitOption.FOLLOW_LINKS)) {
      return files
          .filter(file -> !file.equals(folder))
          .filter(file -> !isHidden(folder.relativize(file)))
          .sorted()
          .toList();
    } catch (IOException e) {
      throw InputException.of("cannot read the folder " + folder, e);
    } catch (UncheckedIOException e) {
      throw InputException.of("cannot read the folder " + folder, e.getCause());
    }
  }

  private static boolean isHidden(Path path) {
    for (Path name : path) {
      if (name.toString().startsWith(".")) {
        return true;
      }
    }
    return false;
  }

  private static List<Path> images(List<Path> files) {
    List<Path> images = new ArrayList<>();
    for (Path file : files) {
      String name = file.getFileName().toString().toLowerCase(Locale.ROOT);
      String kind = name.substring(name.lastIndexOf('.') + 1);
      if (NOT_READ.contains(kind) && Files.isRegularFile(file)) {
        throw new InputException(
            "the image " + file + " is of a kind that is not read; JPEG and PNG are");
      }
      if (READ.contains(kind) && !Files.isDirectory(file)) {
        images.add(file); // a link that leads nowhere is told of where it is read
      }
    }
    return images;
  }
}
