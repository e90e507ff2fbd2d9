# The read room: opening files and reading them into page-aligned memory.
add_room(io native/io/file_reader.cpp native/io/memory.cpp native/io/page_cache.cpp native/io/uring.cpp
         native/io/wakeup.cpp)
add_addon(io native/io/addon.cpp native/io/uring_addon.cpp)
