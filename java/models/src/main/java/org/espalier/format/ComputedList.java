package org.espalier.format;

import java.util.AbstractList;
import java.util.List;
import java.util.Objects;
import java.util.RandomAccess;
import java.util.function.IntFunction;

/** An immutable list whose members are made each time they are asked for, because all of them would fill memory. */
public final class ComputedList<T> extends AbstractList<T> implements RandomAccess {
  private final int size;
  private final IntFunction<T> member;

  /**
   * A list.
   *
   * @param member gives the same for a number each time; called by the threads that read the list
   */
  public ComputedList(int size, IntFunction<T> member) {
    this.size = size;
    this.member = member;
  }

  /** A list itself where it is computed, else a copy: immutable either way. */
  public static <T> List<T> orCopy(List<T> list) {
    return list instanceof ComputedList ? list : List.copyOf(list);
  }

  /**
   * Some members of a list in an order of one's own, made when they are asked for where the list's are.
   *
   * @param indices of the members
   */
  public static <T> List<T> pick(List<T> list, List<Integer> indices) {
    if (!(list instanceof ComputedList)) {
      return indices.stream().map(list::get).toList();
    }
    List<Integer> own = List.copyOf(indices);
    return new ComputedList<>(own.size(), i -> list.get(own.get(i)));
  }

  @Override
  public T get(int index) {
    return member.apply(Objects.checkIndex(index, size));
  }

  @Override
  public int size() {
    return size;
  }
}
