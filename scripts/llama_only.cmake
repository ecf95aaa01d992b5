# Read by CMake after llama.cpp's own project(): leaves out a library that nothing here loads, and that takes almost
# half of the time to compile. llama-cpp-python forces the option on in the cache; a plain variable wins over that.
set(LLAMA_BUILD_COMMON OFF)
