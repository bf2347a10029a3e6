package org.espalier.format.safetensors;

import com.fasterxml.jackson.core.JsonParser;
import com.fasterxml.jackson.core.JsonProcessingException;
import com.fasterxml.jackson.core.JsonToken;
import java.io.IOException;
import java.nio.charset.CharacterCodingException;
import java.nio.file.Files;
import java.nio.file.InvalidPathException;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Collection;
import java.util.Collections;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.SortedMap;
import java.util.TreeMap;
import org.espalier.InputException;
import org.espalier.format.Names;

/**
 * The tensors of a model: one safetensors file, or a folder with {@code model.safetensors} or with
 * shards and their {@code model.safetensors.index.json}. Every file is opened and checked at once,
 * and the index must agree with the shards: each tensor it names is in the shard it names and in no
 * other, and each tensor of a shard is named.
 *
 * <p>Instances can be read by several threads at once; {@link #close()} must come after.
 */
public final class Checkpoint implements AutoCloseable {
  /** The name of a folder's weights when they are one file. */
  public static final String SINGLE = "model.safetensors";

  /** The name of the file that tells which shard holds which tensor. */
  public static final String INDEX = "model.safetensors.index.json";

  private static final long MAX_INDEX_BYTES = 100_000_000;

  private final Path path;
  private final boolean sharded;
  private final List<SafetensorsFile> files;
  private final SortedMap<String, SafetensorsFile> fileOf;

  private Checkpoint(
      Path path,
      boolean sharded,
      List<SafetensorsFile> files,
      SortedMap<String, SafetensorsFile> fileOf) {
    this.path = path;
    this.sharded = sharded;
    this.files = files;
    this.fileOf = fileOf;
  }

  /**
   * Opens and checks a checkpoint.
   *
   * @param path a safetensors file, or a folder that holds a model
   * @throws InputException if a file cannot be read or anything is not as it should be
   */
  public static Checkpoint open(Path path) {
    if (!Files.exists(path)) {
      throw new InputException(path + ": there is no such file or folder");
    }
    if (!Files.isDirectory(path)) {
      return single(path, path);
    }
    Path index = path.resolve(INDEX);
    Path single = path.resolve(SINGLE);
    if (Files.exists(index) && Files.exists(single)) {
      throw new InputException(
          path + " holds both " + SINGLE + " and " + INDEX + "; name the one file or remove one");
    }
    if (Files.exists(index)) {
      return sharded(path, index);
    }
    if (Files.exists(single)) {
      return single(path, single);
    }
    throw new InputException(
        path + " holds neither " + SINGLE + " nor " + INDEX + "; name the file that is meant");
  }

  private static Checkpoint single(Path path, Path file) {
    SafetensorsFile opened = SafetensorsFile.open(file);
    SortedMap<String, SafetensorsFile> fileOf = new TreeMap<>(Names.ORDER);
    for (TensorInfo tensor : opened.tensors()) {
      fileOf.put(tensor.name(), opened);
    }
    return new Checkpoint(path, false, List.of(opened), fileOf);
  }

  private static Checkpoint sharded(Path folder, Path index) {
    Map<String, String> weightMap = readIndex(index);
    SortedMap<String, SafetensorsFile> shards = new TreeMap<>(Names.ORDER);
    SortedMap<String, SafetensorsFile> fileOf = new TreeMap<>(Names.ORDER);
    try {
      for (Map.Entry<String, String> entry : weightMap.entrySet()) {
        String shard = entry.getValue();
        SafetensorsFile file = shards.get(shard);
        if (file == null) {
          Path shardPath = shardPath(folder, shard, index);
          if (!Files.exists(shardPath)) {
            throw new InputException(
                index
                    + ": tensor "
                    + Names.quote(entry.getKey())
                    + " is to be in "
                    + Names.quote(shard)
                    + ", which is missing");
          }
          file = SafetensorsFile.open(shardPath);
          shards.put(shard, file);
        }
        if (file.tensor(entry.getKey()) == null) {
          throw new InputException(
              index
                  + ": tensor "
                  + Names.quote(entry.getKey())
                  + " is not in "
                  + file.path()
                  + ", where the index puts it");
        }
        fileOf.put(entry.getKey(), file);
      }
      for (SafetensorsFile file : shards.values()) {
        for (TensorInfo tensor : file.tensors()) {
          SafetensorsFile owner = fileOf.get(tensor.name());
          if (owner != file) {
            throw new InputException(
                file.path()
                    + ": tensor "
                    + Names.quote(tensor.name())
                    + (owner == null
                        ? " is not named in " + index
                        : " is in " + owner.path() + " too; one shard is right"));
          }
        }
      }
      return new Checkpoint(folder, true, List.copyOf(shards.values()), fileOf);
    } catch (RuntimeException e) {
      for (SafetensorsFile file : shards.values()) {
        file.close();
      }
      throw e;
    }
  }

  /** A shard is a file of the folder itself: no separator, nothing that leads out of it. */
  private static Path shardPath(Path folder, String shard, Path index) {
    boolean plain =
        shard.endsWith(".safetensors")
            && !shard.startsWith(".")
            && shard.chars().noneMatch(c -> c == '/' || c == '\\' || Character.isISOControl(c));
    if (plain) {
      try {
        return folder.resolve(shard);
      } catch (InvalidPathException e) {
        // Characters that the file system's encoding does not have: no name of a file here.
      }
    }
    throw new InputException(
        index
            + ": "
            + Names.quote(shard)
            + " is not the name of a shard; NAME.safetensors in the same folder is right");
  }

  private static Map<String, String> readIndex(Path index) {
    try {
      if (!Files.isRegularFile(index)) {
        throw new InputException(index + " is not a regular file");
      }
      if (Files.size(index) > MAX_INDEX_BYTES) {
        throw new InputException(
            index + " has " + Files.size(index) + " bytes, above the limit of " + MAX_INDEX_BYTES);
      }
      return weightMap(Files.readAllBytes(index), index.toString());
    } catch (CharacterCodingException e) {
      throw new InputException(index + " is not UTF-8", e);
    } catch (JsonProcessingException e) {
      throw new InputException(index + " is not valid: " + StrictJson.reason(e), e);
    } catch (IOException e) {
      throw SafetensorsFile.cannotRead(index, e);
    }
  }

  private static Map<String, String> weightMap(byte[] json, String where) throws IOException {
    Map<String, String> weightMap = null;
    try (JsonParser parser = StrictJson.parser(json, 16)) {
      if (parser.nextToken() != JsonToken.START_OBJECT) {
        throw new InputException(where + " is not a JSON object");
      }
      while (parser.nextToken() == JsonToken.FIELD_NAME) {
        String key = parser.currentName();
        parser.nextToken();
        if (!key.equals("weight_map")) {
          parser.skipChildren();
          continue;
        }
        if (weightMap != null) {
          throw new InputException(where + " has weight_map twice");
        }
        if (parser.currentToken() != JsonToken.START_OBJECT) {
          throw new InputException(
              where + ": weight_map is " + StrictJson.kind(parser) + ", not an object");
        }
        weightMap = new LinkedHashMap<>();
        while (parser.nextToken() == JsonToken.FIELD_NAME) {
          String name = parser.currentName();
          if (parser.nextToken() != JsonToken.VALUE_STRING) {
            throw new InputException(
                where
                    + ": weight_map gives tensor "
                    + Names.quote(name)
                    + " "
                    + StrictJson.kind(parser)
                    + "; the name of a shard is right");
          }
          String before = weightMap.put(name, parser.getText());
          if (before != null) {
            throw new InputException(
                where
                    + ": tensor "
                    + Names.quote(name)
                    + " occurs twice, in "
                    + Names.quote(before)
                    + " and in "
                    + Names.quote(parser.getText()));
          }
        }
      }
      if (parser.nextToken() != null) {
        throw new InputException(where + " goes on after its JSON object");
      }
    }
    if (weightMap == null || weightMap.isEmpty()) {
      throw new InputException(where + " has no weight_map that names tensors");
    }
    return weightMap;
  }

  /** The path that was opened. */
  public Path path() {
    return path;
  }

  /** Whether the tensors are in shards with an index. */
  public boolean isSharded() {
    return sharded;
  }

  /** The files that hold the tensors, in the order of their names. */
  public List<SafetensorsFile> files() {
    return files;
  }

  /** All tensors in the order of their names' UTF-8 bytes, however they are sharded. */
  public Collection<TensorInfo> tensors() {
    List<TensorInfo> tensors = new ArrayList<>(fileOf.size());
    fileOf.forEach((name, file) -> tensors.add(file.tensor(name)));
    return Collections.unmodifiableList(tensors);
  }

  /** All tensors file by file, in the order in which their bytes lie there: the fastest to read. */
  public List<TensorInfo> tensorsByPlace() {
    return files.stream().flatMap(f -> f.tensorsByPlace().stream()).toList();
  }

  /** The tensor of that name, or null. */
  public TensorInfo tensor(String name) {
    SafetensorsFile file = fileOf.get(name);
    return file == null ? null : file.tensor(name);
  }

  /**
   * The file that holds a tensor.
   *
   * @throws IllegalArgumentException if there is no such tensor
   */
  public SafetensorsFile fileOf(String tensor) {
    SafetensorsFile file = fileOf.get(tensor);
    if (file == null) {
      throw new IllegalArgumentException(path + " has no tensor " + Names.quote(tensor));
    }
    return file;
  }

  @Override
  public void close() {
    for (SafetensorsFile file : files) {
      file.close();
    }
  }
}
